"""The host's ledger of KV blocks: which sequences hold each block, and which prefix is in it. It owns no bytes."""
