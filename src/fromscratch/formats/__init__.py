"""How other programs name and store the same weights, and how to read and write them."""
