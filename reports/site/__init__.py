"""The static site: a leaderboard over runs, with a page for each task and each kernel."""
