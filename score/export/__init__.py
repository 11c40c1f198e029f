"""What other tools load: rankings written in their formats, each a function in a file of its own, and their lists read."""
