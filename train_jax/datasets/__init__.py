"""Data sets that are made on the spot, with what draws their pictures, reads them and grades them."""
