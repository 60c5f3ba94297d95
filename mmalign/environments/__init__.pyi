from mmalign.environments.calculator import calculator as calculator
from mmalign.environments.run_python import run_python as run_python
from mmalign.environments.says import says as says
from mmalign.environments.simulated_user import simulated_user as simulated_user
from mmalign.environments.tools import tools as tools
from mmalign.environments.zoom import zoom as zoom
