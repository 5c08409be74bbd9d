"""The host's ledger of KV blocks: who holds which block, and which blocks hold a known prefix. It owns no bytes."""
