"""The colours of every picture, readable by the colour-blind."""

# Okabe & Ito's eight colours, distinct for every kind of colour vision; yellow and black come last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
