// Nothing of it is needed by device code that is compiled by NVRTC.
#pragma once
