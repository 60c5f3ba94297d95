from mmalign.environments.calculator import calculator as calculator
from mmalign.environments.tools import tools as tools
