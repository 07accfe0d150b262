"""Training of residuals: packs of concepts in one UNet pass, their size, and early stopping."""
