"""The structured window (K8): its layout, and the memories that save what is older."""
