"""A sweep as one page to look at, print and pass on."""
