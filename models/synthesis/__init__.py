"""What is made of good images: augmented, corrupted, with synthetic defects; and what the images themselves allow."""
