"""Names of classes and images as cells of CSV files, which spreadsheets open."""

_FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # what a spreadsheet takes for the start of a formula


def to_cell(text: str) -> str:
    """Text as a cell of a CSV file that no spreadsheet takes for a formula: `=1+1` becomes `'=1+1`."""
    return f"'{text}" if _is_formula(text) else text


def from_cell(cell: str) -> str:
    """The text that [`to_cell`] was given."""
    return cell[1:] if cell.startswith("'") and _is_formula(cell) else cell


def _is_formula(text: str) -> bool:
    return text.lstrip("' ").startswith(_FORMULA)
