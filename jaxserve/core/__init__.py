"""The words everybody shares: requests, plans, events, configuration, errors. Imports nothing of jaxserve."""
