"""Models from elsewhere: pretrained by others, or served by others."""
