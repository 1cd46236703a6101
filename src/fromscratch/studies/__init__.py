"""Studies: a baseline, interventions and seeds become runs, statistics, and verdicts."""
