package lifecycletest

import _ "github.com/stretchr/testify/require"
