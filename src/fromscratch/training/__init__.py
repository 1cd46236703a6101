"""One loop for every model: batch, loss, backward, check, clip, step, observe, save."""
