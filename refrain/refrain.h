// Everything that a user of the library includes.
#pragma once

#include "refrain/core/dtype.h"
#include "refrain/core/error.h"
#include "refrain/core/half.h"
#include "refrain/core/log.h"
#include "refrain/core/shape.h"
#include "refrain/graph/dump.h"
#include "refrain/stream/device.h"
