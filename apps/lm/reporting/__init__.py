"""What people look at: curves of a training, as text, picture or page, and a scan as a page."""
