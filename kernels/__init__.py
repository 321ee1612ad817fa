"""Operations of fast image-classifier training, usable on their own in any network."""
