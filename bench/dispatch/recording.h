// What the host pays before anything runs: recording, submitting, replay on a device that computes nothing.
#pragma once

namespace refrain::bench {

/// Each prints its figures as lines `name value unit`.
void measure_recording();
void measure_commit();
void measure_null_replay();
void measure_submission();

}  // namespace refrain::bench
