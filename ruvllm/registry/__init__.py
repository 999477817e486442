"""The registry: gates, packaging, the ledger of what is promoted, and how the champion reaches a gateway."""
