"""One command from the check of the images to the leaderboard: puts the other rooms together."""
