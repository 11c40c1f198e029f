"""Shows a ranking: charts of heads, and the page that holds them. Only what is shown comes from here, no score."""
