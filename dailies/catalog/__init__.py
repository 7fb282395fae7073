"""A searchable catalogue of a video federation: crawled, merged, ranked, with neighbours by content."""
