"""Programs that use tf_adamw, written to be copied."""
