#pragma once

namespace ao {

// The compute capability (90 for 9.0) that the code for the current device was compiled for; 0: there is none.
int code_for_current_device();

}  // namespace ao
