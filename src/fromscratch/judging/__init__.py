"""A language model as a judge of other models' answers, and how far its judgements can be trusted."""
