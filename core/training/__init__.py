"""Learning residuals: settings, packs of concepts in one UNet pass, when a concept has converged."""
