"""Make the report's page: data of its figures, pictures, HTML and script."""
