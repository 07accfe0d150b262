"""The method: personalized residuals, packed training, localized attention-guided sampling. No storage, no cluster."""
