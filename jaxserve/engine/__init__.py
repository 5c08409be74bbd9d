"""The step loop: plan, submit, wait, commit; and its thread for asynchronous callers."""
