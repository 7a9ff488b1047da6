// Everything that a user of the library includes: devices and recording, the ops, models and text.
#pragma once

#include "refrain/core/dtype.h"
#include "refrain/core/error.h"
#include "refrain/core/half.h"
#include "refrain/core/log.h"
#include "refrain/core/shape.h"
#include "refrain/graph/dump.h"
#include "refrain/model/generator.h"
#include "refrain/model/model.h"
#include "refrain/model/program_family.h"
#include "refrain/ops/ops.h"
#include "refrain/stream/device.h"
#include "refrain/text/tokenizer.h"
