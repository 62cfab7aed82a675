// LibTorch's tensors. Every file that needs them includes this one, which takes the CHECK macros
// back from glog.
#pragma once

#include <torch/types.h>
// Below LibTorch's headers on purpose.
#include "base/check.h"
#include "base/check_macros.h"
