"""A memory on Vespa (K18): its application and feed as files, and a client that feeds and searches."""
