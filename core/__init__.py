"""The method: personalized residuals, packed training and localized attention-guided sampling. No storage, no cluster."""
