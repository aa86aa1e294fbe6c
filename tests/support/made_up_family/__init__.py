"""A family whose images take 1 to 400 tokens by their size: what a real one may ask of the house.

Patches of 4 pixels, three rows of positions, two deep levels, a tower whose first layer attends
within rows of patches and whose second within the image.
"""
