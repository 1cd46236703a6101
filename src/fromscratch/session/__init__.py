"""Turns a run file into a training run: plan, placement, disk check, set-up, resume."""
