"""Between text and tokens: tokenizer, incremental detokenization, stop strings, chat templates."""
