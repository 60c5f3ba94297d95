from mmalign.merges.by_block import by_block as by_block
from mmalign.merges.extrapolate import extrapolate as extrapolate
from mmalign.merges.residue import residue as residue
from mmalign.merges.soup import soup as soup
from mmalign.merges.two_stage import two_stage as two_stage
