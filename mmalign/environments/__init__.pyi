from mmalign.environments.calculator import calculator as calculator
from mmalign.environments.simulated_user import simulated_user as simulated_user
from mmalign.environments.tools import tools as tools
