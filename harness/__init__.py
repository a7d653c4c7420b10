"""One protocol for parameter-efficient fine-tuning methods of vision-language models."""
