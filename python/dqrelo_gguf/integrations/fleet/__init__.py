"""Several servers of one base behind one endpoint: which one a request goes to, what passes, and the processes themselves."""
