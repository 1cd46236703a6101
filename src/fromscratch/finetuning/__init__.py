"""Fine-tuning: further objectives on records, and answers of the tuned model."""
