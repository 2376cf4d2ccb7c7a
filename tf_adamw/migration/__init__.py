"""The state of other optimizers: taken over, and given back.

    source = migration.read("torch", "optimizer.pt")
    optimizer = tf_adamw.AdamW(**source.arguments())
    optimizer.build(model)
    print(migration.import_state(optimizer, source))

`SOURCES` in `readers.py` names the optimizers that are known.
"""

from tf_adamw.migration.assignment import Report, import_state
from tf_adamw.migration.export import export_state
from tf_adamw.migration.readers import SOURCES, read
from tf_adamw.migration.source import Source

__all__ = [
    "SOURCES",
    "Report",
    "Source",
    "export_state",
    "import_state",
    "read",
]
