"""Pictures and frames of videos, as image encoders see them."""
