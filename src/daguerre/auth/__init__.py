"""Who may come in: keys of this server's own, tokens of the Hub, JWTs."""
