package testify

import _ "github.com/stretchr/testify/require" // want `a program does not carry the tools of its tests`
