"""Operations for fast training of image classifiers, usable on their own in any network."""
