import sys
from pathlib import Path

# Workers get the driver's path, and with it the modules of this folder.
sys.path.insert(0, str(Path(__file__).parent))
