"""How good models are: reconstruction, with protocols that say how each figure was taken."""
